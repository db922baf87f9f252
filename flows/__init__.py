"""What happens, in which order. Nothing here touches a model, a picture or a table."""
