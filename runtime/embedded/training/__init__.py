"""How the embedded draft was made; nothing that serves imports it."""
