"""How is a model behind an address asked? Endpoints, cached replies, and a judge for what the rules leave open."""
