"""Speculative decoding: which tokens of a model does a cheap draft have right, and does it pay?"""
