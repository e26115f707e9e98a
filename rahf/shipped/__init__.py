"""What ships with the package besides code: recipes with their data, accelerate configurations."""
