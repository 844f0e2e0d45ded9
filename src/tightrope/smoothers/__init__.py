"""One file per loss smoother: gradient estimators that see nothing but a function of the params."""
