package s3_test

import (
	"fmt"
	"io"
	"net/http"
	"sync"
)

// bucketServer is as much of S3 as a small object needs, and refuses one method. The real protocol
// is tested in test/.
type bucketServer struct {
	mu       sync.Mutex
	objects  map[string][]byte
	headers  []http.Header
	denied   string
	careless bool // ignores If-None-Match
}

func (s *bucketServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.headers = append(s.headers, r.Header.Clone())
	fail := func(status int, code string) {
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `<Error><Code>%s</Code><Message>of the test</Message></Error>`, code)
	}
	content, there := s.objects[r.URL.Path]
	switch {
	case r.Method == s.denied || r.Method == http.MethodHead && s.denied == http.MethodGet:
		fail(http.StatusForbidden, "AccessDenied")
	case r.Method == http.MethodPut && there && r.Header.Get("If-None-Match") == "*" && !s.careless:
		fail(http.StatusPreconditionFailed, "PreconditionFailed")
	case r.Method == http.MethodPut:
		s.objects[r.URL.Path] = body
		w.Header().Set("ETag", `"e"`)
	case r.Method == http.MethodDelete:
		delete(s.objects, r.URL.Path)
		w.WriteHeader(http.StatusNoContent)
	case !there:
		fail(http.StatusNotFound, "NoSuchKey")
	default:
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = w.Write(content)
	}
}
