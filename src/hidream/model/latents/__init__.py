"""Between pixels and latents: the autoencoder, previews, sizes, images to start from."""
