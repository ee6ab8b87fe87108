package webhook

// MaxWhole is the size up to which a body can be signed with v1a.
const MaxWhole = maxWhole

// Keeping is what is kept per destination, with a bound of its own: get makes what is not there, and used tells of what.
func Keeping(most int) (get func(id, config string) string, forget func(id string), dropped *[]string) {
	dropped = new([]string)
	k := &kept[string]{most: most, drop: func(v string) { *dropped = append(*dropped, v) }}
	made := 0
	get = func(id, config string) string {
		v, _ := k.get(id, fingerprint(config), func() (string, error) {
			made++
			return id + "/" + config + "/" + string(rune('a'+made-1)), nil
		}, func(string) {})
		return v
	}
	return get, k.forget, dropped
}
