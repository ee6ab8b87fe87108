package webhook

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/internal/perdest"
	"github.com/deliverykit/delivery/internal/redact"
)

const (
	maxScopes   = 50
	maxParams   = 20
	maxToken    = 16 << 10
	maxTokens   = 4096 // destinations whose token is kept
	tokenTime   = 20 * time.Second
	tokenMargin = 30 * time.Second // before its end, a token is renewed
	tokenLength = time.Hour        // of one whose end the endpoint does not tell
)

// OAuth2Style is how the client identifies itself at the token endpoint.
type OAuth2Style string

// The styles of RFC 6749, section 2.3.1.
const (
	OAuth2Header OAuth2Style = "header" // HTTP Basic
	OAuth2Body   OAuth2Style = "body"   // as parameters
)

// OAuth2 is the client credentials grant of RFC 6749, section 4.4: before its first request, and
// when a token has ended, a process asks the token endpoint for one, which requests then carry as
// RFC 6750 says.
type OAuth2 struct {
	TokenURL     string             `json:"token_url,omitempty"` // https, or http to a loopback address
	ClientID     string             `json:"client_id,omitempty"`
	ClientSecret destination.Secret `json:"client_secret,omitzero"`
	Scopes       []string           `json:"scopes,omitempty"`
	Audience     string             `json:"audience,omitempty"` // the parameter of that name, which some endpoints want
	Params       map[string]string  `json:"params,omitempty"`   // further parameters, such as resource; not for secrets
	Style        OAuth2Style        `json:"style,omitempty"`    // header
}

// ClientCredentials gets an access token for each destination from a token endpoint.
func ClientCredentials(tokenURL, clientID, clientSecret string, scopes ...string) Auth {
	return Auth{Type: AuthOAuth2, OAuth2: OAuth2{
		TokenURL: tokenURL, ClientID: clientID, ClientSecret: destination.NewSecret(clientSecret), Scopes: scopes,
	}}
}

func (o OAuth2) isZero() bool {
	return o.TokenURL == "" && o.ClientID == "" && !o.ClientSecret.IsSet() && len(o.Scopes) == 0 && o.Audience == "" &&
		len(o.Params) == 0 && o.Style == ""
}

func (o OAuth2) validate() error {
	errs := []error{
		validateURL("token_url", o.TokenURL, false, ""),
		destination.Require("client_id", o.ClientID),
		validateSecretValue("client_secret", o.ClientSecret),
	}
	if !o.ClientSecret.IsSet() {
		errs = append(errs, destination.Require("client_secret", ""))
	}
	text := func(path, v string) {
		if !validValue(v) || len(v) > maxHeaderValue {
			errs = append(errs, destination.Invalid(
				path, "has a control character or white space at an end, or is longer than %d bytes",
				maxHeaderValue,
			))
		}
	}
	text("client_id", o.ClientID)
	text("audience", o.Audience)
	switch o.Style {
	case "", OAuth2Header, OAuth2Body:
	default:
		errs = append(errs, destination.Invalid("style", "is not header or body"))
	}
	if len(o.Scopes) > maxScopes {
		errs = append(errs, destination.Invalid("scopes", "are %d, more than %d", len(o.Scopes), maxScopes))
	}
	for i, s := range o.Scopes {
		if !validScope(s) {
			errs = append(errs, destination.Invalid(
				fmt.Sprintf("scopes[%d]", i),
				"is not a scope: it is empty, or has white space, a quote, a backslash or a character beyond ASCII",
			))
		}
	}
	if len(o.Params) > maxParams {
		errs = append(errs, destination.Invalid("params", "are %d, more than %d", len(o.Params), maxParams))
	}
	for _, name := range slices.Sorted(maps.Keys(o.Params)) {
		path := "params." + name
		switch name {
		case "":
			errs = append(errs, destination.Invalid("params", "has a parameter without a name"))
		case "grant_type", "scope", "audience", "client_id", "client_secret":
			errs = append(errs, &destination.FieldError{
				Path: path, Code: "conflict", Message: "is set by a field of its own, or by the grant",
			})
		default:
			text(path, o.Params[name])
		}
	}
	return errors.Join(errs...)
}

// validScope is the scope-token of RFC 6749, section 3.3.
func validScope(s string) bool {
	return s != "" && len(s) <= maxHeaderValue &&
		!strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '"' || r == '\\' || r >= 0x7f })
}

// tokens keeps the access token of one destination. Of several attempts that need one at once, one
// asks for it.
type tokens struct {
	turn  chan struct{} // holds one: who has taken it may read and write what follows
	value string        // of the header Authorization
	until time.Time
}

func newTokens() *tokens {
	t := &tokens{turn: make(chan struct{}, 1)}
	t.turn <- struct{}{}
	return t
}

// get returns a token that is not the one refused, "" for any that holds, and whether it is a new
// one.
func (t *tokens) get(
	ctx context.Context, now func() time.Time, refused string, fetch func(context.Context) (*oauth2.Token, error),
) (value string, fresh bool, err error) {
	select {
	case <-t.turn:
	case <-ctx.Done():
		return "", false, ctx.Err()
	}
	defer func() { t.turn <- struct{}{} }()
	if t.value != "" && t.value != refused && now().Before(t.until) {
		return t.value, false, nil
	}
	t.value = ""
	got, err := fetch(ctx)
	if err != nil {
		return "", false, err
	}
	lasts := tokenLength
	if !got.Expiry.IsZero() {
		lasts = time.Until(got.Expiry)
	}
	t.value, t.until = "Bearer "+got.AccessToken, now().Add(lasts-min(tokenMargin, lasts/10))
	return t.value, true, nil
}

// authorize gets the attempt the access token that it lacks, or another than the one that was
// refused. An error is classified.
func (a *attempt) authorize(ctx context.Context, h *Handler, refused string) error {
	if a.config.Auth.Type != AuthOAuth2 || a.authorization != "" && a.authorization != refused {
		return nil
	}
	if a.tokens == nil {
		kept, release, err := h.tokens.Get(
			ctx, a.id(), perdest.Fingerprint(a.config.Auth.OAuth2),
			func() (*tokens, error) {
				return newTokens(), nil
			},
		)
		if err != nil {
			return a.noToken(ctx, err)
		}
		release() // there is nothing to close
		a.tokens = kept
	}
	var err error
	a.authorization, a.fresh, err = a.tokens.get(ctx, h.now, refused, func(ctx context.Context) (*oauth2.Token, error) {
		return a.fetchToken(ctx, h.env.Client)
	})
	if err != nil {
		return a.noToken(ctx, err)
	}
	a.redact.Add(strings.TrimPrefix(a.authorization, "Bearer "))
	return nil
}

// errNoBearer and errOddToken are answers of a token endpoint that give no token to use.
var (
	errNoBearer = errors.New("gave a token that is not a bearer token, which this service cannot use")
	errOddToken = errors.New("gave a token that does not fit into a header")
)

func (a *attempt) fetchToken(ctx context.Context, client *http.Client) (*oauth2.Token, error) {
	o := a.config.Auth.OAuth2
	params := url.Values{}
	for name, value := range o.Params {
		params.Set(name, value)
	}
	if o.Audience != "" {
		params.Set("audience", o.Audience)
	}
	style := oauth2.AuthStyleInHeader
	if o.Style == OAuth2Body {
		style = oauth2.AuthStyleInParams
	}
	c := clientcredentials.Config{
		ClientID: o.ClientID, ClientSecret: o.ClientSecret.Reveal(), TokenURL: o.TokenURL, Scopes: o.Scopes,
		EndpointParams: params, AuthStyle: style,
	}
	limited, cancel := context.WithTimeout(ctx, tokenTime)
	defer cancel()
	t, err := c.Token(context.WithValue(limited, oauth2.HTTPClient, client))
	switch {
	case err != nil:
		return nil, err
	case !strings.EqualFold(t.Type(), "Bearer"):
		return nil, errNoBearer
	case !validValue(t.AccessToken) || len(t.AccessToken) > maxToken:
		return nil, errOddToken
	}
	return t, nil
}

// noToken classifies a failure to get an access token. What the endpoint said is shown without
// credentials.
func (a *attempt) noToken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return a.failed(ctx, err)
	}
	endpoint := "the token endpoint"
	if u, err := url.Parse(a.config.Auth.OAuth2.TokenURL); err == nil {
		u.RawQuery, u.ForceQuery = "", false
		endpoint += " " + a.redact.Text(u.Redacted())
	}
	var answer *oauth2.RetrieveError
	if errors.As(err, &answer) && answer.Response != nil {
		return a.tokenRefused(endpoint, answer)
	}
	if errors.Is(err, errNoBearer) || errors.Is(err, errOddToken) {
		return handler.Fail(handler.Remote, fmt.Errorf("webhook: %s %w", endpoint, err))
	}
	e := handler.Classify(err)
	var outward *url.Error
	switch {
	case e.Category == handler.Uncategorized && errors.As(err, &outward):
		e.Category = handler.Network
	case e.Category == handler.Uncategorized:
		e.Category = handler.Remote // an answer without a token
	}
	if outward != nil || errors.As(err, &outward) {
		err = outward.Err // without the URL, whose query may hold a credential
	}
	e.Err = fmt.Errorf(
		"webhook: %s gives no token: %s", endpoint, redact.Line(a.redact.Text(err.Error()), maxErrorExcerpt),
	)
	return e
}

// tokenRefused classifies an error response (RFC 6749, section 5.2).
func (a *attempt) tokenRefused(endpoint string, answer *oauth2.RetrieveError) error {
	status := answer.Response.StatusCode
	text := fmt.Sprintf("webhook: %s answered %d", endpoint, status)
	said := strings.Trim(answer.ErrorCode+": "+answer.ErrorDescription, ": ")
	if said = redact.Line(a.redact.Text(said), maxErrorExcerpt); said != "" {
		text += ": " + said
	}
	hint, category := "", handler.Uncategorized
	switch answer.ErrorCode {
	case "invalid_client", "unauthorized_client", "invalid_grant", "access_denied":
		category, hint = handler.Authentication, "; check auth.oauth2.client_id and client_secret, and that the "+
			"client may use this grant"
	case "invalid_scope", "invalid_request", "unsupported_grant_type", "invalid_target":
		category, hint = handler.Configuration, "; check auth.oauth2: token_url, scopes, audience, params and style"
	case "server_error", "temporarily_unavailable":
		category = handler.Remote
	}
	e := handler.Classify(
		handler.FromHTTP(max(status, http.StatusMultipleChoices), answer.Response.Header, errors.New(text)),
	)
	switch {
	case category != handler.Uncategorized && status < http.StatusInternalServerError:
		e.Category = category
	case status == http.StatusUnauthorized:
		hint = "; check auth.oauth2.client_id, client_secret and style"
	case e.Category == handler.Validation || e.Category == handler.Conflict || status == http.StatusGone:
		e.Category, hint = handler.Configuration, "; check auth.oauth2"
	case e.Category == handler.Configuration:
		hint = "; check auth.oauth2.token_url"
	}
	// What a token endpoint says of itself, such as 410, is not said of the destination.
	e.Verdict, e.StatusCode, e.Code = handler.ByCategory, status, cmp.Or(
		redact.Line(a.redact.Text(answer.ErrorCode), maxErrorExcerpt), e.Code,
	)
	e.Err = errors.New(text + hint)
	return e
}
