"""The audit: what a training changed besides the trait that was asked for."""
