"""Meta-training: the loss of many networks, differentiated through the GHN that predicts their parameters."""
