"""CenterNet: Keypoint Triplets: an object is a pair of corners with a centre between them."""
