"""What does a small sparse autoencoder keep of the stream, and do its features stand for something and do it?"""
