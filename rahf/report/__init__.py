"""Tables and figures of a finished run. Reads artifacts, never loads a model."""
