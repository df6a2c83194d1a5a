"""What a GHN's predictions and embeddings tell about architectures, against networks that are trained."""
