"""The pocket world: small pictures of coloured shapes, questions about them, and pairs of them."""
