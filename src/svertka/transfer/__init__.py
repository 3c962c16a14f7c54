"""Transfer learning: frozen layers, stored features, and logistic and nearest-mean heads."""
