"""Networks of the levels, the context encoder, and the posterior over z."""
