"""Files of a run in; tables, charts, cards and pages out. Loads no model."""
