"""Third-party models, as their packages have them: how much of each is predicted, and whether batch statistics work."""
