"""Where durableq meets other systems. Each module needs an extra of its own and imports it when it is used."""
