"""How good the product's models are on real images, trained as a user trains them."""
