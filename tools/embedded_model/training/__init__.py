"""Trains the parts of the model: autoencoder, text encoder, UNet."""
