"""Reference models, as transformers' own classes. Nothing here is imported before it is used."""
