"""Parts of the embedded base model that a user of it does not need: its tokenizer, its processor, its training."""
