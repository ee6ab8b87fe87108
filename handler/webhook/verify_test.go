package webhook_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/deliverykit/delivery/handler/webhook"
	"github.com/deliverykit/delivery/payload"
)

// The test vector of the Standard Webhooks libraries.
const (
	vectorSecret    = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	vectorID        = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	vectorBody      = `{"test": 2432232314}`
	vectorTime      = 1614265330
	vectorSignature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
)

func at(seconds int64) webhook.VerifyOption {
	return webhook.Clock(func() time.Time { return time.Unix(seconds, 0) })
}

func vector() http.Header {
	return http.Header{
		"Webhook-Id":        {vectorID},
		"Webhook-Timestamp": {strconv.Itoa(vectorTime)},
		"Webhook-Signature": {vectorSignature},
	}
}

func TestStandardWebhooksVector(t *testing.T) {
	t.Parallel()
	header, err := webhook.Sign([]string{vectorSecret}, vectorID, time.Unix(vectorTime, 0), []byte(vectorBody))
	if err != nil || header.Get("webhook-signature") != vectorSignature {
		t.Errorf("%v, %v", header, err)
	}
	for _, secret := range []string{vectorSecret, strings.TrimPrefix(vectorSecret, "whsec_")} {
		if err := webhook.Verify([]string{secret}, vector(), []byte(vectorBody), at(vectorTime)); err != nil {
			t.Error(err)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	good := []string{vectorSecret}
	for name, c := range map[string]struct {
		edit    func(http.Header)
		secrets []string
		now     int64
		want    error
	}{
		"no id":                 {edit: func(h http.Header) { h.Del("Webhook-Id") }, want: webhook.ErrHeader},
		"empty id":              {edit: func(h http.Header) { h.Set("Webhook-Id", "") }, want: webhook.ErrHeader},
		"two ids":               {edit: func(h http.Header) { h.Add("Webhook-Id", vectorID) }, want: webhook.ErrHeader},
		"no timestamp":          {edit: func(h http.Header) { h.Del("Webhook-Timestamp") }, want: webhook.ErrHeader},
		"two timestamps":        {edit: func(h http.Header) { h.Add("Webhook-Timestamp", "1") }, want: webhook.ErrHeader},
		"timestamp with words":  {edit: func(h http.Header) { h.Set("Webhook-Timestamp", "now") }, want: webhook.ErrHeader},
		"signed timestamp":      {edit: func(h http.Header) { h.Set("Webhook-Timestamp", "+1614265330") }, want: webhook.ErrHeader},
		"negative timestamp":    {edit: func(h http.Header) { h.Set("Webhook-Timestamp", "-1614265330") }, want: webhook.ErrHeader},
		"endless timestamp":     {edit: func(h http.Header) { h.Set("Webhook-Timestamp", strings.Repeat("0", 12)) }, want: webhook.ErrHeader},
		"no signature":          {edit: func(h http.Header) { h.Del("Webhook-Signature") }, want: webhook.ErrHeader},
		"blank signature":       {edit: func(h http.Header) { h.Set("Webhook-Signature", "  ") }, want: webhook.ErrHeader},
		"no v1 signature":       {edit: func(h http.Header) { h.Set("Webhook-Signature", "v2,AAAA v1a,AAAA") }, want: webhook.ErrHeader},
		"signature not base64":  {edit: func(h http.Header) { h.Set("Webhook-Signature", "v1,%%%") }, want: webhook.ErrHeader},
		"too many signatures":   {edit: func(h http.Header) { h.Set("Webhook-Signature", strings.Repeat("v1,AAAA ", 65)) }, want: webhook.ErrHeader},
		"empty signature":       {edit: func(h http.Header) { h.Set("Webhook-Signature", "v1,") }, want: webhook.ErrSignature},
		"beginning of it":       {edit: func(h http.Header) { h.Set("Webhook-Signature", "v1,g0hM") }, want: webhook.ErrSignature},
		"other version":         {edit: func(h http.Header) { h.Set("Webhook-Signature", "v2"+vectorSignature[2:]) }, want: webhook.ErrHeader},
		"other timestamp":       {edit: func(h http.Header) { h.Set("Webhook-Timestamp", "1614265331") }, want: webhook.ErrSignature},
		"same time, other text": {edit: func(h http.Header) { h.Set("Webhook-Timestamp", "01614265330") }, want: webhook.ErrSignature},
		"other secret":          {secrets: []string{oldSecret}, want: webhook.ErrSignature},
		"no secret":             {secrets: []string{}, want: webhook.ErrSecret},
		"empty secret":          {secrets: []string{vectorSecret, ""}, want: webhook.ErrSecret},
		"short secret":          {secrets: []string{"whsec_c2hvcnQ="}, want: webhook.ErrSecret},
		"secret not base64":     {secrets: []string{"whsec_my plain secret, which is no base64"}, want: webhook.ErrSecret},
		"old":                   {now: vectorTime + 301, want: webhook.ErrTooOld},
		"new":                   {now: vectorTime - 301, want: webhook.ErrTooNew},
		"just not old":          {now: vectorTime + 300},
		"just not new":          {now: vectorTime - 300},
		"one of two secrets":    {secrets: []string{oldSecret, vectorSecret}},
		"one of two signatures": {edit: func(h http.Header) { h.Set("Webhook-Signature", "v1,AAAA v9,x "+vectorSignature) }},
		"on lines of their own": {edit: func(h http.Header) { h["Webhook-Signature"] = []string{"v1,AAAA", vectorSignature} }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			header := vector()
			if c.edit != nil {
				c.edit(header)
			}
			if c.secrets == nil {
				c.secrets = good
			}
			if c.now == 0 {
				c.now = vectorTime
			}
			err := webhook.Verify(c.secrets, header, []byte(vectorBody), at(c.now))
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "my plain secret") {
				t.Error("the error quotes a secret")
			}
		})
	}
	if err := webhook.Verify(good, vector(), []byte(vectorBody), at(vectorTime+3000), webhook.Tolerance(time.Hour)); err != nil {
		t.Error(err)
	}
}

// Whatever is signed verifies, and does not once any bit of it is another.
func TestOneFlippedBit(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		id := rapid.StringMatching(`[A-Za-z0-9_-]{1,40}`).Draw(r, "id")
		body := rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(r, "body")
		seconds := rapid.Int64Range(1e9, 4e9).Draw(r, "seconds")
		keys := [][]string{{vectorSecret}, {vectorSecret, oldSecret}, {oldSecret, vectorSecret}}
		header, err := webhook.Sign(rapid.SampledFrom(keys).Draw(r, "signed by"), id, time.Unix(seconds, 0), body)
		if err != nil {
			r.Fatal(err)
		}
		verify := func() error {
			return webhook.Verify([]string{vectorSecret}, header, body, at(seconds), webhook.Tolerance(1<<62))
		}
		if err := verify(); err != nil {
			r.Fatal(err)
		}
		bit := byte(1) << rapid.IntRange(0, 7).Draw(r, "bit")
		switch name := rapid.SampledFrom([]string{"", "Webhook-Id", "Webhook-Timestamp"}).Draw(r, "where"); name {
		case "":
			body[rapid.IntRange(0, len(body)-1).Draw(r, "at")] ^= bit
		default:
			v := []byte(header.Get(name))
			v[rapid.IntRange(0, len(v)-1).Draw(r, "at")] ^= bit
			header.Set(name, string(v))
		}
		if verify() == nil {
			r.Fatal("verifies all the same")
		}
	})
}

func TestFlippedByteOfWhatIsSent(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, nil)
	for _, size := range []int{20, 2 << 20} { // from memory, and as a stream
		_, err := deliver(t, webhook.Config{URL: r.URL, SigningSecrets: secrets(newSecret)}, payload.Bytes("b", bytes.Repeat([]byte("z"), size)))
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, got := range r.requests() {
		if err := webhook.Verify([]string{newSecret}, got.header, got.body); err != nil {
			t.Error(err)
		}
		got.body[len(got.body)-1] ^= 1
		if err := webhook.Verify([]string{newSecret}, got.header, got.body); !errors.Is(err, webhook.ErrSignature) {
			t.Errorf("%d bytes with one flipped: %v", len(got.body), err)
		}
	}
}

func TestVerifyRequest(t *testing.T) {
	t.Parallel()
	request := func() *http.Request {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(vectorBody))
		r.Header = vector()
		return r
	}
	r := request()
	body, err := webhook.VerifyRequest(r, []string{vectorSecret}, at(vectorTime))
	again, _ := io.ReadAll(r.Body)
	if err != nil || string(body) != vectorBody || string(again) != vectorBody {
		t.Errorf("%q, then %q, %v", body, again, err)
	}
	if body, err := webhook.VerifyRequest(request(), []string{oldSecret}, at(vectorTime)); !errors.Is(err, webhook.ErrSignature) || body != nil {
		t.Errorf("%q, %v", body, err)
	}
	for _, length := range []int64{int64(len(vectorBody)), -1} {
		r := request()
		r.ContentLength = length
		if _, err := webhook.VerifyRequest(r, []string{vectorSecret}, at(vectorTime), webhook.MaxBody(5)); !errors.Is(err, webhook.ErrBodySize) {
			t.Errorf("length %d: %v", length, err)
		}
	}
	r = request()
	r.Body = io.NopCloser(io.MultiReader(strings.NewReader("x"), brokenReader{}))
	if _, err := webhook.VerifyRequest(r, []string{vectorSecret}, at(vectorTime)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestSignRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		secrets []string
		id      string
	}{{nil, "a"}, {[]string{"short"}, "a"}, {[]string{vectorSecret}, ""}, {[]string{vectorSecret}, "a\nb"}} {
		if h, err := webhook.Sign(c.secrets, c.id, time.Unix(0, 0), nil); err == nil {
			t.Errorf("%v is accepted: %v", c, h)
		}
	}
}

// Header parsing takes foreign input: nothing panics, and only the right signature passes.
func FuzzVerify(f *testing.F) {
	f.Add(vectorID, strconv.Itoa(vectorTime), vectorSignature, []byte(vectorBody))
	f.Add("", "", "", []byte{})
	f.Add("a", "18446744073709551616", "v1, v1,= ,,", []byte("x"))
	f.Add("a", "99999999999", "v1,AAAA\tv1,AAAA", []byte("x"))
	f.Fuzz(func(t *testing.T, id, timestamp, signature string, body []byte) {
		header := http.Header{"Webhook-Id": {id}, "Webhook-Timestamp": {timestamp}, "Webhook-Signature": {signature}}
		err := webhook.Verify([]string{vectorSecret}, header, body, at(vectorTime))
		if err != nil {
			return
		}
		seconds, parseErr := strconv.ParseInt(timestamp, 10, 64)
		want, signErr := webhook.Sign([]string{vectorSecret}, id, time.Unix(seconds, 0), body)
		if errors.Join(parseErr, signErr) == nil && !strings.Contains(signature, strings.TrimRight(want.Get("Webhook-Signature"), "=")[:40]) {
			t.Errorf("%q passes", signature)
		}
	})
}
