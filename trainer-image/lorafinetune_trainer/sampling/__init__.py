"""Pictures, made with the model as it stands."""
