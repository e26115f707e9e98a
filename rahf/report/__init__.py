"""Files of a run in; tables, figures, cards and pages out. Loads no model."""
