"""Engines behind `durableq.connect`. `base` says what an engine has to do, `queue` is the queue on top of it."""
