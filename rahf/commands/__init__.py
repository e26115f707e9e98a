"""The commands of `rahf`, one module each, and the message of an error that ends one."""
