"""The tuned scheme: two parties and a dealer, one message a round."""
