"""What more than one notebook needs: the nouns of the paper, one module each."""
