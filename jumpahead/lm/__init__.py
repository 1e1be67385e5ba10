"""Language models and their text: read a site, splice a site, score."""
