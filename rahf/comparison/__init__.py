"""Methods side by side on one recipe: each tuned with as many trials, trained with several seeds,
measured on the same prompts and texts, at several strengths.
"""
