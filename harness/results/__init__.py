"""What a run stores: manifest, records with times and versions, and weights."""
