package handler

// As returns h as a T. Where h is not a T, it looks at the handler that h wraps, and so on: it
// follows a method Unwrap() Handler as errors.As follows Unwrap() error. An outer handler that is a
// T itself wins over the ones inside.
//
// The service looks for a Handler's optional interfaces with As, so a wrapper keeps those that it
// does not implement.
func As[T any](h Handler) (T, bool) {
	for h != nil {
		if v, ok := h.(T); ok {
			return v, true
		}
		w, ok := h.(interface{ Unwrap() Handler })
		if !ok {
			break
		}
		h = w.Unwrap()
	}
	var none T
	return none, false
}
