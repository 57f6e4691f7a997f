"""What a new recipe is begun from: `probe recipe new`."""
