"""The plots of the embedded corpus, as data: the events of each story. `book.py` explains the notation."""

from __future__ import annotations

PLOTS = {}

PLOTS["lost"] = """
@opening
- {hero} had a {look} {thing} and loved it [very much|more than anything].
| {His} best treasure was a {look} {thing}.
| {He} had a {look} {thing} that {he} took everywhere.
- One {weather} {time} {hero} <went> to the {place} [to play|with the {thing}].
| One {weather} {time} {he} took the {thing} [for a walk |]to the {place}.
@sky
- But [on the way home|after a while|when {he} wanted to go home] the {thing} was gone.
| After a while {hero} saw that the {look} {thing} was gone.
| But the {thing} fell out of {his} bag and was lost.
? {hero} looked <spot> and up in the trees, but it was not there.
| "Oh no, where is my {thing}?" [cried|said] {hero}.
? {He} was <very><sad> and [began to cry|sat down on a rock].
@friend passes
- "[Why are you so <sad>|What is wrong]?" asked {friend}.
- "I [lost|cannot find] my {look} {thing}," said {hero}.
? "Do not [cry|worry]," said {friend}. / "[I will help you|We will find it together]."
| "[I will help you|We will find it together]," said {friend}.
? They looked [up and down|all around|here and there] {at}.
- At last {friend} <saw> the {thing} <spot>.
| Then {friend} <saw> something {look} <spot>. / It was the {thing}!
@thanks
@evening
- {hero} never lost the {look} {thing} again.
| "A [good|true] friend is better than any {thing}," said {hero}.
"""

PLOTS["wish"] = """
@opening
@friend known
- One {weather} {time} {hero} and {friend} <went> to the {place}.
| One {weather} {time} they <went> to the {place} together.
@sky
- There {hero} saw a {look} {thing}.
| {At} {hero} saw [an old woman|an old man] with a {look} {thing}.
- "I wish I had a {thing} like that," said {hero}.
| "Oh, what a <lovely> {thing}!" said {hero}.
? But {he} had no money, [and so they went home|so {he} could not buy it].
| But the {thing} cost too much, and {hero} went home [without it|with nothing].
? {friend} saw that {hero} was <very><sad>.
| {hero} [thought about|dreamed of] the {look} {thing} all night.
- So {friend} [worked|helped] {at} [for many days|every day] and saved {his2} coins.
| So {friend} worked hard every day and made something in secret.
- On {his} birthday {hero} found a big box at the door.
| When {his} birthday came, {friend} gave {hero} a big box.
- In the box was a {look} {thing}!
| {He} opened it and saw a {look} {thing}.
? "My wish came true!" <cried> {hero}.
| "[This|It] is just what I wished for!" <cried> {hero}.
? "I made your wish come true because you are my friend," said {friend}.
| "You are my best friend," said {friend}.
@thanks
@together
"""

PLOTS["learn"] = """
@opening
- {hero} wanted to learn to {skill}.
| More than anything {hero} wanted to {skill}.
| {He} had a secret wish, and it was to learn to {skill}.
- One {weather} {time} {he} [went|ran] to the {place} and tried to {skill}.
| So one {weather} {time} {hero} tried to {skill} {at}.
@sky
- But {he} did it all wrong, and everyone laughed.
| But it was [much too|very] hard, and {he} could not do it.
? "I will never learn to {skill}," [said|cried] {hero}.
| "I cannot do it," said {hero}.
@friend passes
- "I [know how to|can] {skill}," said {friend}. / "I will [teach|show] you."
| "[I will teach you|Let me show you how to {skill}]," said {friend}.
| "It was hard for me too when I began to {skill}," said {friend}.
? [They|{hero} and {friend}] worked {at} [all day|every {time}|day after day].
| Every day {friend} came to the {place} and showed {him} how to do it.
? At first {hero} was slow, but {he} did not [give up|stop].
| "Try again," said {friend}, and {hero} tried again and again.
- Then one day {hero} could {skill} [very well|better than anyone]!
| At last {hero} learned to {skill}.
? "Look, {friend}, I can do it!" <cried> {hero}.
| All the birds came to see the {kind} {skill}.
| {friend} [was very proud of|hugged] the {trait} {kind}.
@thanks
- {hero} learned that we must try again and never give up.
| "If you try and try, you can do it," said {hero}.
@together
"""

PLOTS["share"] = """
@opening
- {hero} loved to [bake|eat] good things.
| {He} had a big kitchen and loved to bake.
- One {weather} {time} {he} made a [big |warm |sweet ]{taste} {food}.
| One {weather} {time} {hero} baked a fresh {taste} {food}.
@sky
- {He} put the {food} in a basket and <went> to the {place} to eat it.
| {hero} took the {taste} {food} to the {place}.
- There sat a [hungry|cold and hungry] {kind2} <named> {friend}.
| {At} {he} met {friend} the {kind2}, who [looked|was] <very>hungry.
? "I have not eaten all day," said {friend}.
| "What smells so good?" asked {friend}.
| "I have no [food|money], and I am so hungry," said {friend}.
- {hero} looked at the {food} and wanted to eat it all alone.
| {hero} thought about it, for the {food} was not very big.
? But {he} saw how <sad> {friend} was.
| But then {he} looked at {friend} and [smiled|felt warm inside].
- "[Come and|Please] sit with me," said {hero}. / "We can share my {taste} {food}."
| "Here, half of the {food} is for you," said {hero}.
? They ate the {food} together {at}, and it [was|tasted] <very>good.
| {friend} ate and ate until the {taste} {food} was gone.
? "That was the best {food} in the world," said {friend}.
| "You are <very>kind," said {friend}.
@evening
? The next day {friend} came to the house {home} with a [big |]bag of {look} flowers.
- {hero} learned that a {food} tastes better when we share it.
| "Everything is better when we share it," said {hero}.
"""

PLOTS["found"] = """
@opening
- One {weather} {time} {hero} <went> [for a walk |]to the {place}.
| One {weather} {time} {hero} was [playing|walking] {at}.
@sky
- There {he} saw something {look} <spot>.
| Suddenly {he} saw that something {look} lay <spot>.
- It was a {look} {thing}!
| {He} looked again, and it was a {thing}!
? "What a <lovely> {thing}!" said {hero}. / "[May I|Can I] keep it?"
| {hero} wanted to keep the {thing}.
| "I wish it were mine," said {hero}.
- But then {he} thought, "[Someone must miss it|It is not mine]."
| "But it is not mine," {he} thought.
? So {he} took it and asked everyone {at}.
| So {hero} [asked|went to] everyone {at}, but no one knew the {thing}.
- At last {he} [met|came to] a {kind2} <named> {friend}, who was <very><sad>.
| Then {he} heard someone cry. / It was {friend} the {kind2}.
- "I lost my {thing}," said {friend}. / "It was {look}, and [I loved it|my mother made it]."
| "My {look} {thing} is gone," said {friend}.
? "Is this your {thing}?" asked {hero}.
| "[Look|Here], I found your {thing} <spot>," said {hero}.
- {friend} took the {look} {thing} and [smiled|laughed|danced].
| "Yes, that is my {thing}!" <cried> {friend}.
? "Thank you, {hero}!" [said|cried] {friend}.
| {friend} was so <happy> that {he2} hugged the {trait} {kind}.
@evening
- {hero} felt <happy>, for it is good to [help|be kind].
| {hero} had no {thing} now, but {he} had a new friend.
"""

PLOTS["noise"] = """
@opening
- One [dark|cold|long] night {hero} could not sleep.
| One [dark|cold|long] night {hero} was in bed with {his} {look} {thing}.
- {He} heard a [strange|loud] noise at the door.
| There was a [strange|loud] noise at the door.
? "Who is there?" [asked|cried] {hero}, but no one said anything.
| "Is it a monster?" thought {hero}.
? {He} hid under the bed [with {his} {look} {thing}|and did not move].
| {His} heart went boom, boom, boom.
- Then the {trait} {kind} took {his} {look} {thing} and <went> to the door.
| "I must be brave," said {hero}, and {he} took {his} {look} {thing} and opened the door.
- But it was not a monster. / It was {friend} the {kind2}!
| There in the dark stood a {kind2} <named> {friend}.
? "I was on my way to the {place}, but I am lost," said {friend}.
| "I am <very>cold, and my house {at} is far away," said {friend}.
- "Come in, {friend}," said {hero}. / "You can sleep here."
| {hero} [laughed|smiled] and gave {friend} a warm [bed|blanket].
? They drank warm [milk|tea] and told stories until [they fell asleep|the sun came up].
| {hero} showed {him2} the {look} {thing}, and they played until they fell asleep.
- In the morning they <went> to the {place} together.
| The next day {hero} took {friend} to the {place}.
? {hero} gave {friend} the {thing}, so that {he2} would never be afraid.
- After that {hero} was not afraid of the dark.
| "The dark is not so bad when you have a friend," said {hero}.
@together
"""

PLOTS["broken"] = """
@opening
@friend known
- {friend} had a {look} {toy} that {he2} loved [very much|more than anything].
| The best treasure of {friend} was a {look} {toy}.
- One {weather} {time} they played with the {toy} {at}.
| One {weather} {time} {hero} and {friend} took the {toy} to the {place}.
@sky
- But {hero} ran too fast and fell on the {toy}.
| Suddenly {hero} fell over a rock, and the {toy} fell too.
- Crack! / The {look} {toy} was broken.
| "Oh no, the {toy} is broken!" [cried|said] {hero}.
? {hero} was afraid and wanted to hide the {toy} <spot>.
| "What will {friend} say?" thought {hero}.
? But {he} knew that it was best to tell the truth.
| But the {trait} {kind} did not want to tell a lie.
- "{friend}, I broke your {toy}," said {hero}. / "I am <very>sorry."
| "I am sorry that I broke your {look} {toy}," said {hero}.
? {friend} was <sad>, but {he2} was not angry.
| At first {friend} was angry, but then {he2} smiled.
| "Thank you for telling me the truth," said {friend}.
| "You are my friend, and a {toy} is only a {toy}," said {friend}.
- They took some [glue|string] and fixed the {toy} together.
| {hero} worked all night and made the {look} {toy} as good as new.
? Now it was even better than before.
| They took the {look} {toy} back to the {place} and played again.
- {hero} learned that it is always best to tell the truth.
| "[I will always|We must always] tell the truth," said {hero}.
@together
"""

PLOTS["way home"] = """
@opening
- One {weather} {time} {hero} <went> to the {place} all alone.
| One {weather} {time} {he} wanted to see the {place}.
@sky
? {He} [ran after|followed] a {look} butterfly and went far, far away.
| {He} played {at} for a long time and forgot [the way home|to go home].
- Soon it was dark, and {hero} was lost.
| [Suddenly|Then] {hero} did not know the way home.
? "How will I find my house {home}?" [asked|cried] {hero}.
| "I want to go home," cried {hero}.
? An old owl flew over the trees and {hero} was afraid.
| {He} sat down <spot> and began to cry.
@friend passes
- "[Why are you so <sad>|What is wrong]?" asked {friend}.
| "Why are you alone in the dark?" asked {friend}.
- "I am lost," said {hero}. / "I live {home}."
| "I cannot find my house {home}," said {hero}.
- "I know the way," said {friend}. / "Take my {look} {thing} and come with me."
| {friend} gave {him} a {look} {thing} and said, "Do not be afraid."
? {hero} held the {thing} and was not afraid anymore.
| With the {thing} in {his} hand {hero} felt very brave.
| They <went> [over a bridge|down the path|past the trees] and sang a song.
| {friend} told {him} funny stories all the way.
- At last they saw a light, and it was the house {home}!
| "Look, that is my house!" <cried> {hero}.
? "Please keep the {look} {thing}," said {friend}.
| {hero} wanted to give back the {thing}, but {friend} said, "It is yours."
- {hero} never went to the {place} alone again.
| The next {weather} day {hero} and {friend} went to the {place} together.
"""

PLOTS["race"] = """
@opening
@friend known
- One {weather} {time} {friend} said, "Let us race to the {place}."
| One {weather} {time} there was a big race to the {place}.
- The [best runner would get|prize was] a {look} {thing}.
| "I will give the winner my {look} {thing}," said an old [man|woman].
@sky
? "I will win that {thing}," said {hero}.
| {hero} wanted to win the {look} {thing} very much.
? One, two, three, and they ran!
| They ran [over the hills|past the trees|down the path] as fast as they could.
- {hero} was [first|very fast], and {friend} was far behind.
| Soon {hero} could see the {place}, for {he} was very fast.
- But then {he} heard {friend} cry.
| But suddenly {friend} fell over a rock.
? "Oh, my foot!" cried {friend}.
| {friend} could not get up, for {his2} foot hurt.
- {hero} thought about the {look} {thing}, but {he} stopped and <went> back.
| {hero} stopped, for a friend is better than any {thing}.
? "Take my hand," said {hero}. / "We will go together."
| {hero} helped {friend} up, and they walked together.
? They came to the {place} hand in hand, and they were last.
| The {kind} and the {kind2} were the last to come to the {place}.
- But everyone {at} [was <happy>|laughed and danced], and they both got the {thing}!
| But [an old woman|an old man] {at} gave them the {look} {thing}, for they were <close> friends.
- {hero} learned that it is better to help than to win.
| "It is better to help a friend than to win a {thing}," said {hero}.
"""

PLOTS["shy"] = """
@opening
- {hero} had a {look} {thing}, but no one to play with.
| {He} [always|often] played alone with {his} {look} {thing}.
- One {weather} {time} a new {kind2} came to the {place}.
| One {weather} {time} {hero} saw a new {kind2} {at}.
@sky
- {His2} name was {friend}, and {he2} sat all alone <spot>.
| The {kind2} was <named> {friend} and did not say anything.
? {hero} wanted to say hello, but {he} was afraid.
| "Maybe {he2} will not like me," thought {hero}.
? Then {he} had [an idea|a good idea].
| But the {trait} {kind} [was brave|did not give up].
- {He} put the {look} {thing} down next to {friend} and smiled.
| {hero} took the {thing} and <went> to {friend}.
- "Hello, I am {hero}," said {hero}. / "Do you want to play with my {thing}?"
| "Do you like my {look} {thing}?" asked {hero}.
- {friend} looked at the {thing} and [smiled|laughed].
| "[Yes|Oh yes], I love your {thing}!" said {friend}.
? "I was afraid that no one would play with me," said {friend}.
| "I have no friends here," said {friend}, "and I was so <sad>."
| "Now you have me," said {hero}.
| "I was afraid too," said {hero}.
- They played with the {look} {thing} {at} until [the stars came out|it was dark].
| All {time} they played {at} and told funny stories.
@evening
? The next day {friend} gave {hero} a {taste} {food} and said, "This is for my new friend."
- {hero} learned that a new friend may be shy too.
| Now {hero} had a {look} {thing} and a friend to play with.
"""

PLOTS["seed"] = """
@opening
@friend known
- One {weather} {time} {friend} [gave|showed] {him} a little seed.
| One {weather} {time} {hero} found a little seed {at}.
@sky
? "What will it be?" asked {hero}.
| "It is so small," said {hero}. / "What will come out of it?"
- "It will be a big {seed}," said {friend}, "but you must wait."
| "[Wait|Take care of it] and you will see a big {seed}," said {friend}.
? They put the seed in the ground next to the house {home}.
| {hero} put the seed in the ground and gave it water.
- Every day {hero} looked, but there was nothing.
| The next day {hero} ran out to look, but nothing was there.
? "I do not want to wait," said {hero}.
| "Where is my {seed}?" asked {hero}.
| {hero} was <very><sad> and wanted to give up.
| "Good things take time," said {friend}.
| "Do not give up," said {friend}. / "It is only asleep."
? So {hero} [gave it water|came] every day and sang it a song.
| So the {trait} {kind} waited and waited.
- The rain came, and the sun came, and then something green came up.
| Then one {time} {hero} saw a little green leaf.
? "Look, {friend}, it is here!" <cried> {hero}.
| {hero} [ran|went] to tell {friend}.
- Soon it was the best {seed} in the world.
| The leaf grew and grew, and soon there was a big {seed} {home}.
? Everyone came from the {place} to see the {seed}.
| It was so big that one could see it from the {place}.
- {hero} learned that good things take time.
| "It was good to wait," said {hero}.
@together
"""
