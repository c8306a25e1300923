"""Where `forward` sends to: one module for each kind of engine. `base` says what a sink is, `urls` finds it by its URL."""
