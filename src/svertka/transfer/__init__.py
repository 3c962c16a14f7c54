"""Transfer learning: frozen layers, stored features, and heads in closed form."""
