package storage_test

import (
	"context"
	"fmt"
	"io"
	"path"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/handler/storage"
	"github.com/deliverykit/delivery/payload"
)

const item = "0199c1b2-7d1e-7000-8000-0123456789ab-0"

func request(file, contentType string) *handler.Request {
	return &handler.Request{
		Organization: "acme", DeliveryID: item[:36], ItemID: item, Topic: "report.finished", Metadata: map[string]string{"region": "eu/west"},
		CreatedAt: time.Date(2026, 11, 30, 23, 30, 0, 0, time.FixedZone("", -3600)), // December in UTC
		Payload: payload.NewContent(payload.Info{Name: file, ContentType: contentType, Size: 0}, func(context.Context, int64) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader("")), nil
		}),
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä", 200) + ".csv"
	for _, c := range []struct{ template, file, contentType, want string }{
		{storage.DefaultName, "a.csv", "", "2026/12/01/" + item + "-a.csv"},
		{"{organization}/{date}T{hour}/{topic}", "", "", "acme/2026-12-01T00/report.finished"},
		{"x{ext}", "a.tar.gz", "", "x.gz"},
		{"{file}", "", "application/json", "payload.json"},
		{"{file}", "", "text/csv; charset=utf-8", "payload.csv"},
		{"{file}", "", "application/x-unheard-of", "payload"},
		{"{stem}_{delivery}{ext}", "report.v2.pdf", "", "report.v2_" + item[:36] + ".pdf"},
		{"{metadata.region}/x", "", "", "eu_west/x"},
		{"{metadata.absent}/x", "", "", "_/x"},
		{"{ext}", "a", "", "_"},
		{"{file}", "../../etc/passwd", "", "_.._.._etc_passwd"},
		{"{file}", "..", "", "_.."},
		{"{file}", ".profile", "", "_.profile"},
		{".well-known/{file}", ".delivery-x", "", ".well-known/_.delivery-x"},
		{".{file}", "delivery-x.tmp", "", "_.delivery-x.tmp"},
		{"{file}", "a\x00b\r\nc\\d\u202ee\xff", "", "a_b__c_d_e_"},
		{"{file}", "e\u0301.txt", "", "\u00e9.txt"},
		{"{file}", long, "", strings.Repeat("ä", 91) + "~" + "%HASH%" + ".csv"},
	} {
		template, err := storage.ParseTemplate(c.template)
		if err != nil {
			t.Errorf("%s: %v", c.template, err)
			continue
		}
		got, err := template.Name(request(c.file, c.contentType))
		if before, after, hashed := strings.Cut(c.want, "%HASH%"); hashed && len(got) == len(before)+12+len(after) {
			c.want = before + got[len(before):len(before)+12] + after
		}
		if err != nil || got != c.want {
			t.Errorf("%s of %q: %q, %v; want %q", c.template, c.file, got, err, c.want)
		}
	}
}

func TestTemplatesThatAreRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "/a", "a/", "a//b", "../a", "a/../b", "./a", "{item", "item}", "{}", "{secret}", "{Item}", "{metadata.}", "{metadata.a/b}",
		"{item}}", "a\x00", "a\nb", `a\b`, "a:b", "a\u202eb", "\xff", ".delivery-x/{item}", strings.Repeat("a", 1025),
	} {
		if _, err := storage.ParseTemplate(text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestLongNames(t *testing.T) {
	t.Parallel()
	template, err := storage.ParseTemplate(strings.Repeat("{file}/", 6) + "x")
	if err != nil {
		t.Fatal(err)
	}
	_, err = template.Name(request(strings.Repeat("a", 300), ""))
	if e := handler.Classify(err); err == nil || e.Category != handler.Validation {
		t.Errorf("a name of more than 1024 bytes: %v", err)
	}
	// What begins alike stays apart.
	template, err = storage.ParseTemplate("{file}")
	if err != nil {
		t.Fatal(err)
	}
	a, errA := template.Name(request(strings.Repeat("a", 300)+"1.csv", ""))
	b, errB := template.Name(request(strings.Repeat("a", 300)+"2.csv", ""))
	if errA != nil || errB != nil || a == b || path.Ext(a) != ".csv" || len(a) > storage.MaxSegment {
		t.Errorf("%q, %v\n%q, %v", a, errA, b, errB)
	}
}

func TestMatcher(t *testing.T) {
	t.Parallel()
	template, err := storage.ParseTemplate("exports/{year}/{item}-{file}")
	if err != nil {
		t.Fatal(err)
	}
	ours := template.Matcher()
	name, err := template.Name(request("a+b.csv", ""))
	if err != nil || !ours(name) || !template.Unique() || template.Prefix() != "exports/" {
		t.Errorf("%q, %v, %q", name, err, template.Prefix())
	}
	for _, other := range []string{"exports/2026/a.csv", "exports/2026/x/" + item + "-a", "exports/" + name, name + "/x", ""} {
		if ours(other) {
			t.Errorf("%q is taken for ours", other)
		}
	}
	if fixed, err := storage.ParseTemplate("exports/{date}.csv"); err != nil || fixed.Unique() {
		t.Error("a name without an id is taken for unique", err)
	}
}

// Whatever comes in, the name is safe, has the template's segments, and is the same each time.
func TestNamesAreSafe(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"..", ".", "/", "\\", ".delivery-x.tmp", "\x00", " ", "\u2028"}))
		req := request(text.Draw(t, "file"), text.Draw(t, "type"))
		req.Organization, req.Topic = text.Draw(t, "organization"), text.Draw(t, "topic")
		req.ItemID, req.Metadata = text.Draw(t, "item"), map[string]string{"k": text.Draw(t, "metadata")}
		parts := rapid.SliceOfN(rapid.SampledFrom([]string{"{organization}", "{file}", "{stem}", "{ext}", "{topic}", "{item}", "{metadata.k}", "a", ".", "-"}), 1, 4)
		segments := rapid.SliceOfN(parts, 1, 4).Draw(t, "template")
		var joined []string
		for _, s := range segments {
			joined = append(joined, strings.Join(s, ""))
		}
		template, err := storage.ParseTemplate(strings.Join(joined, "/"))
		if err != nil {
			return // a segment of dots
		}
		checkName(t, template, req, len(segments))
	})
}

type failer interface{ Fatalf(string, ...any) }

func checkName(t failer, template *storage.Template, req *handler.Request, segments int) {
	name, err := template.Name(req)
	if err != nil {
		t.Fatalf("%v", err)
	}
	if err := storage.CheckName(name); err != nil {
		t.Fatalf("%q %v", name, err)
	}
	if n := strings.Count(name, "/") + 1; n != segments {
		t.Fatalf("%q has %d segments, want %d", name, n, segments)
	}
	if path.Clean("/"+name) != "/"+name {
		t.Fatalf("%q is not clean", name)
	}
	for s := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(s, ".delivery-") {
			t.Fatalf("%q has a reserved segment", name)
		}
	}
	if again, err := template.Name(req); err != nil || again != name {
		t.Fatalf("%q and then %q, %v", name, again, err)
	}
}

func FuzzTemplate(f *testing.F) {
	for _, text := range []string{storage.DefaultName, "{organization}/{metadata.k}{ext}", "../{file}", "{{}}", "a/./b", ".{file}"} {
		f.Add(text, "../x.csv", "a/b")
	}
	f.Fuzz(func(t *testing.T, text, file, value string) {
		template, err := storage.ParseTemplate(text)
		if err != nil {
			return
		}
		req := request(file, value)
		req.Organization, req.Topic, req.Metadata = value, value, map[string]string{"k": value}
		if _, err := template.Name(req); err != nil {
			if e := handler.Classify(err); e.Category != handler.Validation {
				t.Fatal(err)
			}
			return
		}
		checkName(t, template, req, strings.Count(text, "/")+1)
		template.Matcher()("x")
	})
}

func ExampleTemplate() {
	template, err := storage.ParseTemplate("exports/{organization}/{date}/{stem}-{delivery}{ext}")
	if err != nil {
		fmt.Println(err)
		return
	}
	name, err := template.Name(request("../Umsatz 2026.csv", "text/csv"))
	fmt.Println(name, err)
	// Output:
	// exports/acme/2026-12-01/_.._Umsatz 2026-0199c1b2-7d1e-7000-8000-0123456789ab.csv <nil>
}
