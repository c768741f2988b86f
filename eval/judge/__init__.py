"""How are models behind an endpoint used? Requests, cached replies, and a judge for unscored answers."""
