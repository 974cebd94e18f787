"""Files of models: checked local files and the Hugging Face Hub."""
