"""The temporal autoencoder: 8 x 8 x 8 compression of video and images to 16 channels."""
