"""One vector per layer: fitted from contrasting states, measured, added to a running model."""
