"""Where durableq plugs into other systems. Each module needs its own extra, and says so if that is not installed."""
