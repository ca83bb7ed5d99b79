"""The bilevel methods on minibatches: the outer value against oracle calls and wall time."""
