"""Token shift: tokens of an aligned model that its base would not have chosen."""
