"""Keep a training from moving a model along a direction, and watch whether it does: for the
trainers of transformers, of TRL and of this package.
"""
