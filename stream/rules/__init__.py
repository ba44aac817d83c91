"""The rules beside the model, and the policy that makes a verdict of both. Pure."""
