package webhook

import (
	"container/list"
	"crypto/sha256"
	"encoding/json"
	"sync"

	"github.com/deliverykit/delivery/destination"
)

// kept holds what was made of a part of a destination's config, for up to a number of destinations: beyond, and when that
// part changes, what was used longest ago goes. The zero kept holds nothing.
type kept[V any] struct {
	most int
	drop func(V) // what goes; may be nil

	mu    sync.Mutex
	by    map[string]*list.Element
	order list.List // of *keptEntry[V], the last used first
}

type keptEntry[V any] struct {
	destination string
	made        [sha256.Size]byte // of what
	value       V
}

// fingerprint tells whether a part of a config, with its secrets, is another.
func fingerprint(part any) [sha256.Size]byte {
	raw, err := destination.Reveal(part)
	if err != nil {
		raw, _ = json.Marshal(part)
	}
	return sha256.Sum256(raw)
}

// get returns what is kept for a destination, or else makes it. use is called with it before it can be dropped. Without a
// destination nothing is kept.
func (k *kept[V]) get(id string, of [sha256.Size]byte, create func() (V, error), use func(V)) (V, error) {
	if id == "" {
		v, err := create()
		if err == nil {
			use(v)
		}
		return v, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if e, ok := k.by[id]; ok {
		entry, _ := e.Value.(*keptEntry[V])
		if entry.made == of {
			k.order.MoveToFront(e)
			use(entry.value)
			return entry.value, nil
		}
		k.remove(e)
	}
	v, err := create()
	if err != nil {
		return v, err
	}
	use(v)
	if k.by == nil {
		k.by = map[string]*list.Element{}
	}
	k.by[id] = k.order.PushFront(&keptEntry[V]{destination: id, made: of, value: v})
	for k.order.Len() > k.most {
		k.remove(k.order.Back())
	}
	return v, nil
}

func (k *kept[V]) forget(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e, ok := k.by[id]; ok {
		k.remove(e)
	}
}

func (k *kept[V]) forgetAll() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for k.order.Len() > 0 {
		k.remove(k.order.Back())
	}
}

func (k *kept[V]) remove(e *list.Element) {
	entry, _ := k.order.Remove(e).(*keptEntry[V])
	delete(k.by, entry.destination)
	if k.drop != nil {
		k.drop(entry.value)
	}
}
