"""Other people's models: each file reads one format, runs none of its code, and ends in a network and a card."""
