"""Models and adapters: loading, decoder blocks, packed attention, likelihoods, shapes."""
