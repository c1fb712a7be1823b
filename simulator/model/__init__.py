"""Model architectures: what a network weighs, stores per token and computes, apart from any device."""
